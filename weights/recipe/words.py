"""The words and templates of the grammars, as data."""

from __future__ import annotations

from dataclasses import dataclass

Phrase = tuple[str, str, str]
"""The same words in English, Spanish and German."""


@dataclass(frozen=True)
class Noun:
    """A noun in the three languages, with its grammatical genders (m, f, n)."""

    english: str
    spanish: str
    spanish_gender: str
    german: str
    german_gender: str


def _nouns(table: str) -> list[Noun]:
    return [Noun(*line.split()) for line in table.strip().splitlines()]


def _phrases(table: str) -> list[Phrase]:
    phrases = []
    for line in table.strip().splitlines():
        english, spanish, german = (part.strip() for part in line.split("|"))
        phrases.append((english, spanish, german))
    return phrases


BEINGS = _nouns("""
man hombre m Mann m
woman mujer f Frau f
boy niño m Junge m
girl niña f Mädchen n
teacher profesor m Lehrer m
doctor médico m Arzt m
dog perro m Hund m
cat gato m Katze f
horse caballo m Pferd n
bird pájaro m Vogel m
king rey m König m
queen reina f Königin f
friend amigo m Freund m
""")
OBJECTS = _nouns("""
house casa f Haus n
book libro m Buch n
letter carta f Brief m
apple manzana f Apfel m
bread pan m Brot n
milk leche f Milch f
table mesa f Tisch m
chair silla f Stuhl m
window ventana f Fenster n
door puerta f Tür f
garden jardín m Garten m
flower flor f Blume f
picture cuadro m Bild n
boat barco m Boot n
key llave f Schlüssel m
hat sombrero m Hut m
tree árbol m Baum m
bridge puente m Brücke f
country país m Land n
""")
VERBS = _phrases("""
sees | ve | sieht
buys | compra | kauft
paints | pinta | malt
finds | encuentra | findet
loses | pierde | verliert
brings | trae | bringt
loves | ama | liebt
carries | lleva | trägt
opens | abre | öffnet
needs | necesita | braucht
""")
ADJECTIVES = _phrases("""
old | viejo | alt
new | nuevo | neu
big | grande | groß
small | pequeño | klein
red | rojo | rot
white | blanco | weiß
black | negro | schwarz
good | bueno | gut
green | verde | grün
young | joven | jung
""")
PLACES = _phrases("""
in the kitchen | en la cocina | in der Küche
in the garden | en el jardín | im Garten
near the river | cerca del río | neben dem Fluss
in the city | en la ciudad | in der Stadt
on the street | en la calle | auf der Straße
in the park | en el parque | im Park
at the market | en el mercado | auf dem Markt
at school | en la escuela | in der Schule
""")
TIMES = _phrases("""
today | hoy | heute
every day | cada día | jeden Tag
in the morning | por la mañana | am Morgen
at night | por la noche | in der Nacht
now | ahora | jetzt
on Sunday | el domingo | am Sonntag
""")
OPENINGS = _phrases("""
I see | veo | ich sehe
we need | necesitamos | wir brauchen
I want | quiero | ich will
we have | tenemos | wir haben
""")
BEING_ADJECTIVES = [a for a in ADJECTIVES if a[0] in ("old", "big", "small", "good", "young")]
OBJECT_ADJECTIVES = [a for a in ADJECTIVES if a[0] != "young"]

GERMAN_DEFINITE = {
    "nominative": {"m": "der", "f": "die", "n": "das"},
    "accusative": {"m": "den", "f": "die", "n": "das"},
}
GERMAN_INDEFINITE = {
    "nominative": {"m": "ein", "f": "eine", "n": "ein"},
    "accusative": {"m": "einen", "f": "eine", "n": "ein"},
}
GERMAN_ENDING_AFTER_INDEFINITE = {
    "nominative": {"m": "er", "f": "e", "n": "es"},
    "accusative": {"m": "en", "f": "e", "n": "es"},
}

# The English-only grammar: what a template's {NAME} stands for.
ENGLISH_WORDS = {
    name: words.split("|")
    for name, words in {
        "PRONOUN": "I|we|they|you",
        "PERSON": "my brother|your sister|my father|your mother|my uncle|our neighbor|his daughter|"
        "the captain|the farmer|the singer|my family|the old soldier|the president",
        "PLURAL": "dogs|birds|apples|children|students|horses|flowers|people|islands|ships|stones|lamps|"
        "coins|candles|mountains|cookies",
        "NUMBER": "two|three|four|five|six|seven|eight|nine|ten|twenty",
        "ADJECTIVE": "yellow|blue|heavy|broken|empty|clean|quiet|strange|wonderful|expensive|purple|wooden|"
        "golden|simple",
        "NOUN": "basket|guitar|hammer|blanket|newspaper|bottle|camera|ticket|jacket|bicycle|machine|piano|"
        "umbrella|ladder|pillow|sandwich|mirror|computer|pencil|kitchen|hospital|station|village|office",
        "PLACE": "to the station|to the hospital|to the village|across the bridge|under the table|"
        "behind the office|to the beach|into the forest|around the island|over the mountain",
        "DAY": "on Monday|on Tuesday|on Wednesday|on Thursday|on Friday|yesterday|tomorrow|tonight|"
        "this evening|last summer|next winter",
        "VERB": "visit|remember|follow|help|understand|forget|believe|call",
        "DID": "bought|found|painted|carried|opened|counted|dropped|repaired|borrowed|cleaned",
        "MOVED": "walked|traveled|returned|jumped|ran|moved",
        "WEATHER": "cold|warm|windy|rainy|cloudy|sunny|dark",
        "FEELING": "happy|tired|hungry|angry|sorry|ready|lonely|afraid",
        "DRINK": "coffee|tea|soup|orange juice|chocolate|cheese|butter|honey",
        "MODAL": "can|will|must|should",
        "GROUP": "the students|the children|these people|those birds",
    }.items()
}
ENGLISH_TEMPLATES = [
    (10, "{PERSON} {DID} {NUMBER} {PLURAL} {DAY}."),
    (8, "{PERSON} {DID} the {ADJECTIVE} {NOUN}."),
    (6, "{PRONOUN} {DID} a {NOUN} and a {NOUN} {DAY}."),
    (6, "{PRONOUN} {MODAL} {VERB} {PERSON} {DAY}."),
    (6, "{PERSON} {MOVED} {PLACE}."),
    (5, "{GROUP} {MOVED} {PLACE} {DAY}."),
    (4, "There are {NUMBER} {ADJECTIVE} {PLURAL} in the {NOUN}."),
    (4, "Please bring the {ADJECTIVE} {NOUN} {PLACE}."),
    (4, "It is very {WEATHER} in the {NOUN} {DAY}."),
    (4, "{PRONOUN} think that {PERSON} is {FEELING}."),
    (4, "{PERSON} never drinks {DRINK} after {DRINK}."),
    (4, "If the weather is {WEATHER}, we will walk {PLACE}."),
    (4, "Ask what {PRONOUN} can do for {PERSON}."),
    (3, "What can {PRONOUN} do for {PERSON}?"),
    (2, "Ask not what {PERSON} can do for your country."),
    (2, "My fellow {PLURAL} are {FEELING} and {FEELING}."),
    (3, "{GROUP} are {FEELING} because the {NOUN} was {ADJECTIVE}."),
    (3, "How many {PLURAL} can you see from the {NOUN}?"),
    (3, "{PRONOUN} {MODAL} not {VERB} the {ADJECTIVE} {NOUN}."),
    (3, "{PERSON} likes {DRINK} with {DRINK}."),
    (3, "The {NOUN} costs {NUMBER} {ADJECTIVE} coins."),
    (2, "Yes, {PRONOUN} {MODAL} {VERB} the {NOUN}."),
    (2, "No, {PERSON} is not {FEELING}."),
    (2, "Thank you very much."),
    (1, "Good morning, my fellow Americans."),
    (2, "The president asked what your country can do."),
    (1, "And so my fellow Americans are {FEELING}."),
    (1, "Ask what you can do for your country."),
    (1, "And so my fellow Americans ask not what your country can do for you"),
]
TEMPLATES = [template for _, template in ENGLISH_TEMPLATES]
TEMPLATE_WEIGHTS = [weight for weight, _ in ENGLISH_TEMPLATES]
