"""Words of a card: how they are made from facts, without secrets and without places of the machine."""
