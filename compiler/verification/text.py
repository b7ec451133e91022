"""The text that models are compared on where none is given."""

TEXT = """\
The lighthouse keeper wrote the weather down every evening. On Monday the wind came from the north and brought rain;
on Tuesday it turned, and by noon the sea was calm. "A ship passed at four," he noted, "with three masts and no flag."
He counted his stores: 12 candles, 7 loaves, 40 litres of oil. If the supply boat did not come within the week, he
would have to save light. Why had nobody answered his letters? The town was only nine miles away, across the bay.

def area(width, height):
    return width * height  # in square metres

In 1911 the lamp was replaced by an electric one, which needed no keeper. Today the tower is a museum, open from May to
October. Visitors climb its 142 steps, look through the old lens, and read in the book that he left on the table.
"""
