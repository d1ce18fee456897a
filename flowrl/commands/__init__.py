"""Commands of the ``flowrl`` program, a file each. Like the program itself, they import what they need when called."""
