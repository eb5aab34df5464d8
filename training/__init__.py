"""Training of the demo model: the scenes and the training scripts."""
