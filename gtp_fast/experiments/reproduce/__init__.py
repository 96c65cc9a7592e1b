"""One table or figure of the paper, run again: what it needs (`items`), on which data (`data`), trained by `trials`,
scored (`scores`, `goals`), and written beside the paper's figures (`run`, `page`, `pictures`).
"""
