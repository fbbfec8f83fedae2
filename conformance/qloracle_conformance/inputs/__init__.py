"""The inputs that every implementation meets, in layers: values, shapes, and edits for Hypothesis."""
