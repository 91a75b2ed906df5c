"""Pay as you go: accounts between a payer and a payee, who pays ahead and who counts."""
