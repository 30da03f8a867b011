"""What looks at a guest and prods it: reports, symbols, traces."""
