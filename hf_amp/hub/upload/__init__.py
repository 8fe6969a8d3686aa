"""What is uploaded: pushes in the background, and what must not leave the machine, or not in pieces."""
