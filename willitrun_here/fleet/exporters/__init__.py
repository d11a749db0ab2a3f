"""What others can read: one module per format, each a function from values to text."""
