"""How flat a minimum is: losses around the weights, and how well a model knows what it knows."""
