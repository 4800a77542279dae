"""Dice as the article measures it."""
