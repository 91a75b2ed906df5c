"""Where money meets verdicts: contracts, vouchers, ledgers and disputes on an EVM chain."""
