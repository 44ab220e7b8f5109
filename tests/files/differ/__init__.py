"""The differential test of files: directories, queries, and the comparison of their results."""
