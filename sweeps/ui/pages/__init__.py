"""What is seen: one file for each page, and what they share."""
