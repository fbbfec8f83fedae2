"""Programs that put the lessons to work: fine-tuning, and the pictures of the documentation."""
