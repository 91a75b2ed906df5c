"""The bisection game: two parties that disagree about a hop narrow it down to one step.

`program` says what a hop computes, element by element; `regeneration` computes it at once;
`trace` commits to it; `game` is the dispute; `referee` judges its last step; `parties` play it
honestly; `transcript` keeps it in a file that anyone can check.
"""
