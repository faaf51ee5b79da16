def card(run): return ""
