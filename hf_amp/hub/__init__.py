"""Publishing from a Trainer: asked before training whether it can work, nothing lost when it fails, a true card."""
