"""A bot that answers the comments of a review; `bot` is the application, and README.md the tour."""
