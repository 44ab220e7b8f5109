"""Mutations of table files: parsers that find the places, and the mutations for each format."""
