"""An economy of operators on virtual days: who earns what, and what cheating brings."""
