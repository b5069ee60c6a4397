"""HTTP in, log out: takes tracking calls and answers 200 only after the log holds them."""
