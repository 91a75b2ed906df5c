"""The bisection game: two parties that disagree about a hop narrow it down to one step."""
