"""The soak: one server for a long time, with ordinary and hostile queries, dying clients, strangers, changing files."""
