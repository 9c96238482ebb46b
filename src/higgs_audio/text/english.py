"""Words of written English forms: data of `written_forms.py`."""

__all__ = [
    "ABBREVIATIONS",
    "COUNTRY_DOLLARS",
    "CURRENCIES",
    "CURRENCY_CODES",
    "DENOMINATORS",
    "DIGITS",
    "EXTENSIONS",
    "HOMOGRAPHS",
    "MONTHS",
    "NUMBERED",
    "PER",
    "POWERS",
    "REGNAL_NAMES",
    "SCALES",
    "SIGNS",
    "SPACED_UNITS",
    "TOP_LEVEL_DOMAINS",
    "UNITS",
    "WEEKDAYS",
]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

DENOMINATORS = {
    2: "half",
    3: "third",
    4: "quarter",
    5: "fifth",
    6: "sixth",
    7: "seventh",
    8: "eighth",
    9: "ninth",
    10: "tenth",
    12: "twelfth",
    16: "sixteenth",
    20: "twentieth",
    32: "thirty second",
    64: "sixty fourth",
    100: "hundredth",
}

# Symbol of a currency -> singular and plural of the unit, singular and plural of its hundredth.
CURRENCIES = {
    "$": ("dollar", "dollars", "cent", "cents"),
    "€": ("euro", "euros", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "¥": ("yen", "yen", "sen", "sen"),
    "₹": ("rupee", "rupees", "paisa", "paise"),
    "₩": ("won", "won", "jeon", "jeon"),
}
CURRENCY_CODES = {
    "USD": "US dollars",
    "EUR": "euros",
    "GBP": "British pounds",
    "JPY": "Japanese yen",
    "CHF": "Swiss francs",
    "CAD": "Canadian dollars",
    "AUD": "Australian dollars",
    "CNY": "Chinese yuan",
    "INR": "Indian rupees",
}
COUNTRY_DOLLARS = {
    "US": "US",
    **dict.fromkeys(("C", "CA"), "Canadian"),
    **dict.fromkeys(("A", "AU"), "Australian"),
    "NZ": "New Zealand",
    "HK": "Hong Kong",
}
# Suffix of an amount, in lower case -> its scale.
SCALES = {
    **dict.fromkeys(("k", "thousand"), "thousand"),
    **dict.fromkeys(("m", "mn", "mio", "million"), "million"),
    **dict.fromkeys(("b", "bn", "billion"), "billion"),
    **dict.fromkeys(("t", "tn", "trn", "trillion"), "trillion"),
}
# What follows "/" after an amount or unit.
PER = {
    **dict.fromkeys(("yr", "year"), "year"),
    **dict.fromkeys(("mo", "mth", "month"), "month"),
    **dict.fromkeys(("wk", "week"), "week"),
    **dict.fromkeys(("d", "day"), "day"),
    **dict.fromkeys(("h", "hr", "hour"), "hour"),
    **dict.fromkeys(("min", "minute"), "minute"),
    **dict.fromkeys(("s", "sec", "second"), "second"),
    "kg": "kilogram",
    "lb": "pound",
    "oz": "ounce",
    "g": "gram",
    "l": "liter",
    "L": "liter",
    "gal": "gallon",
    "m": "meter",
    "km": "kilometer",
    "mi": "mile",
    "sqft": "square foot",
    "unit": "unit",
    "person": "person",
    "user": "user",
    "night": "night",
    "piece": "piece",
    "head": "head",
}
# Abbreviated unit after a number -> singular and plural; only those that the front end lacks, or whose power or rate it
# does not read.
UNITS = {
    "m": ("meter", "meters"),
    "mm": ("millimeter", "millimeters"),
    "cm": ("centimeter", "centimeters"),
    "km": ("kilometer", "kilometers"),
    "ft": ("foot", "feet"),
    "yd": ("yard", "yards"),
    "mi": ("mile", "miles"),
    "µm": ("micrometer", "micrometers"),
    "μm": ("micrometer", "micrometers"),
    "µg": ("microgram", "micrograms"),
    "μg": ("microgram", "micrograms"),
    "µs": ("microsecond", "microseconds"),
    "μs": ("microsecond", "microseconds"),
    "ns": ("nanosecond", "nanoseconds"),
    "s": ("second", "seconds"),
    "h": ("hour", "hours"),
    "g": ("gram", "grams"),
    "kg": ("kilogram", "kilograms"),
    "lb": ("pound", "pounds"),
    "lbs": ("pound", "pounds"),
    "oz": ("ounce", "ounces"),
    "l": ("liter", "liters"),
    "L": ("liter", "liters"),
    "dl": ("deciliter", "deciliters"),
    "cl": ("centiliter", "centiliters"),
    "gal": ("gallon", "gallons"),
    "qt": ("quart", "quarts"),
    "tbsp": ("tablespoon", "tablespoons"),
    "tsp": ("teaspoon", "teaspoons"),
    "V": ("volt", "volts"),
    "kV": ("kilovolt", "kilovolts"),
    "mV": ("millivolt", "millivolts"),
    "W": ("watt", "watts"),
    "mW": ("milliwatt", "milliwatts"),
    "mA": ("milliamp", "milliamps"),
    "Ω": ("ohm", "ohms"),
    "kΩ": ("kilohm", "kilohms"),
    "kJ": ("kilojoule", "kilojoules"),
    "Pa": ("pascal", "pascals"),
    "kPa": ("kilopascal", "kilopascals"),
    "hPa": ("hectopascal", "hectopascals"),
    "bar": ("bar", "bars"),
    "psi": ("p s i", "p s i"),
    "dB": ("decibel", "decibels"),
    "kcal": ("kilocalorie", "kilocalories"),
    "cal": ("calorie", "calories"),
    "kbps": ("kilobits per second", "kilobits per second"),
    "PB": ("petabyte", "petabytes"),
    "rpm": ("r p m", "r p m"),
    "ha": ("hectare", "hectares"),
}
SPACED_UNITS = ("s", "h", "V", "W")  # units only behind a space: not "the 60s", "bus 42A"
POWERS = {"²": "square", "2": "square", "³": "cubic", "3": "cubic"}
SIGNS = {
    "≤": "less than or equal to",
    "≥": "greater than or equal to",
    "≠": "not equal to",
    "≈": "approximately",
    "√": "the square root of",
    "∞": "infinity",
    "⇒": "to",
    "→": "to",
    "←": "from",
    "↔": "to and from",
}
WEEKDAYS = {
    "Mon": "Monday",
    "Tue": "Tuesday",
    "Tues": "Tuesday",
    "Wed": "Wednesday",
    "Thu": "Thursday",
    "Thur": "Thursday",
    "Thurs": "Thursday",
    "Fri": "Friday",
    "Sat": "Saturday",
    "Sun": "Sunday",
}
MONTHS = {
    "Jan": "January",
    "Feb": "February",
    "Mar": "March",
    "Apr": "April",
    "Jun": "June",
    "Jul": "July",
    "Aug": "August",
    "Sep": "September",
    "Sept": "September",
    "Oct": "October",
    "Nov": "November",
    "Dec": "December",
}
# Abbreviations that the front end misreads, each with its full stop unless it is usually written without.
ABBREVIATIONS = {
    "dept.": "department",
    "govt.": "government",
    "approx.": "approximately",
    "misc.": "miscellaneous",
    "max.": "maximum",
    "min.": "minimum",
    "temp.": "temperature",
    "incl.": "including",
    "excl.": "excluding",
    "esp.": "especially",
    "e.g.": "for example",
    "i.e.": "that is",
    "viz.": "namely",
    "Hwy.": "Highway",
    "ASAP": "eigh S eigh P",
}
# Words after which a small Roman numeral is a number; those of the front end and more.
NUMBERED = _words(
    "Title Sonata Symphony Concerto Opus Psalm Canto Appendix Annex Table Figure Part part Act act Scene scene Volume "
    "volume Book book Phase phase Article article War Mark Type type Level level Stage stage Class class Grade grade "
    "Bowl Apollo Gemini Fantasy Episode Round round Rocky Wars Chapter chapter Section section Vatican Division Group "
    "Factor Tier Season Lesson Unit Module Olympiad Saturn Rambo Hamlet"
)
# Names of monarchs and popes, after which a Roman numeral is an ordinal.
REGNAL_NAMES = _words(
    "Pope King Queen Emperor Tsar Czar Henry Louis Edward George William Charles James Richard Elizabeth Napoleon "
    "Pius Benedict Leo Paul Ramses Frederick Philip Alexander Nicholas Peter Catherine Ivan Umberto Emmanuel Gustav "
    "Christian Ferdinand Gregory Innocent Clement Urban Boniface Alfonso Francis Leopold Wilhelm Otto Albert Victor "
    "Mary Margaret Haakon Harald Olav Carl Karl Rudolf Rudolph Maximilian Joseph Franz Robert David Malcolm Edgar "
    "Constantine Justinian Theodosius Ptolemy Cleopatra Darius Xerxes Amenhotep Thutmose Seti Mehmed Murad Selim "
    "Suleiman Pedro Juan Felipe Carlos Isabella Sixtus Julius Adrian Celestine Honorius Eugene Stephen Vladislaus "
    "Sigismund Casimir"
)
TOP_LEVEL_DOMAINS = _words(
    "com org net edu gov mil int io ai co uk de fr es it nl eu ca au us jp cn in ch at se no dk fi pl pt br mx nz ie "
    "be info biz dev app me tv xyz online shop site blog cloud fm ly gg"
)
# File extensions -> how they are said, if not letter by letter.
EXTENSIONS = {
    "yaml": "yaml",
    "yml": "Y M L",
    "json": "jason",
    "txt": "text",
    "toml": "tomml",
    "zip": "zip",
    "jpeg": "jay peg",
    "gif": "giff",
    "wav": "wave",
    "bat": "bat",
    "bin": "bin",
    "log": "log",
    "doc": "doc",
    "docx": "doc X",
    "app": "app",
    "ini": "inny",
    "env": "env",
    "jar": "jar",
    "tar": "tar",
    "lock": "lock",
    "exe": "E X E",
    **{
        extension: " ".join(extension.upper())
        for extension in _words(
            "js ts jsx tsx py md pdf html htm css csv tsv xml png jpg mp3 mp4 avi mkv xls xlsx ppt pptx sh rs "
            "go cpp hpp java php rb sql gz svg ico cfg rtf epub dll iso apk"
        )
    },
}
# Words of two pronunciations that the part of speech does not tell apart: the word and its neighbors -> respelling.
HOMOGRAPHS = {
    r"\b([Ll])ead(?= (?:pipes?|paint|poisoning|bullets?|acid|glass|weights?|shot|roof|ore|mines?|content)\b)": r"\1ed",
    r"\b([Ll])ead(?=-(?:free|acid|lined|based)\b)": r"\1ed",
    r"\b(of|in|is) lead(?= (?:and|or) (?:zinc|copper|tin|iron|silver|mercury)\b)": r"\1 led",
    r"\b(took|takes?|taking|taken|made|makes?|making) a ((?:deep |low |final |last )?)bow\b(?! tie)": r"\1 a \2bough",
    r"\b([Bb])ow(?= (?:down|before|to (?:the|his|her|your|my|their) (?:king|queen|audience|crowd)))": r"\1ough",
    r"\b([Mm])inute(?= (?:specks?|details?|amounts?|particles?|differences?|traces?)\b)": r"\1y newt",
    r"\b([Bb])ass(?= (?:fish|fishing|boats?|lake)\b)": r"\1azz",
    r"\b([Dd])ove(?= (?:in|into|under|down|for|off|head)\b)": r"\1oave",
}
