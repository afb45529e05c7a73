"""Results that people look at: the page of a root, live and afterwards, and the history of nights.

data.py reads what the acceptance suite recorded, pages.py writes pages from it; docs/results_page.md is the guide.
No module imports torch.
"""
