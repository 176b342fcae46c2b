"""What the sampling command is made of: walks on all devices, what the options choose, and what is written."""
