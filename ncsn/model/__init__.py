"""The four nouns together, and their files: a model, how it is loaded, and what a file may hold."""
