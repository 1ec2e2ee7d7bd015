"""Learning by feedback, and measuring it, on any model. Knows nothing of the experiment or of its files."""
