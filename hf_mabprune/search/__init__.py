"""The search: a policy pulls arms in rounds, a removal rule takes the safest out."""
