"""What a recipe may say, and how one is read: `schema` has the fields, `recipe` reads YAML.

No torch here, and nothing that acts on a recipe.
"""
