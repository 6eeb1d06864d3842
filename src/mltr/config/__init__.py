"""Recipes: `schema` defines the fields, `recipe` reads YAML.

Nothing here imports torch or acts on a recipe.
"""
