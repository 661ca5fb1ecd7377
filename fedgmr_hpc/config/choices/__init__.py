"""What keys can be: groups of typed keys, and the choices by name that plug-ins extend."""
