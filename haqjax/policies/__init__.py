"""Policies: the bits that layers may have, what they cost, and how they are made to fit a budget."""
