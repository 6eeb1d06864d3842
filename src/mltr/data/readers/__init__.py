"""One reader a format: from files as people have them to records with labels."""
