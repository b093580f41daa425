"""Published techniques as frozen values, one file each; `catalogue` finds them."""
