"""A language model as teacher, behind an OpenAI-compatible endpoint or a batch service.

`teacher.py` implements the `Teacher` protocol. `survey.py` decides from the journal which requests are still needed,
`asking.py` sends them through `endpoint.py`, and `filters.py` judges the answers.
"""
