"""Committee replay: a lottery names audited claims and those who replay them; equality judges."""
