"""What is written to the disk, and how it is read again: nothing in it is lost, and nothing in it is trusted."""
