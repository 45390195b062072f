"""What outlives the process: tables, the rows that go into them, files."""
