"""One training: methods, recipes, arguments, network and Trainer."""
