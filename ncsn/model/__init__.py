"""Models and their files: loading, saving, and checks of their settings."""
