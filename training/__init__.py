"""How the demo model was made: the scenes it was trained on, and the training."""
