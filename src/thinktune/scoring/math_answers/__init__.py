"""Reading and comparing mathematical answers: one module for each notation."""
