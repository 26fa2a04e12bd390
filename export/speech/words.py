"""Word lists of our own, per language: what sentences are made of. No corpus was copied."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Lexicon:
    """Words by their place in a sentence, and sentences with {places} for them. Sounds matter here, not grammar."""

    names: tuple[str, ...]
    nouns: tuple[str, ...]
    verbs: tuple[str, ...]
    qualities: tuple[str, ...]
    places: tuple[str, ...]
    frames: tuple[str, ...]


def _lexicon(names: str, nouns: str, verbs: str, qualities: str, places: str, frames: str) -> Lexicon:
    sentences = tuple(" ".join(line.split()) for line in frames.split("|"))
    lists = [tuple(words.split()) for words in (names, nouns, verbs, qualities, places)]
    return Lexicon(lists[0], lists[1], lists[2], lists[3], lists[4], sentences)


ENGLISH = _lexicon(
    names="Peter Mary Bob Fiona Victor Amber Thomas Judith Wilma Hugh Zoe Paul Emma Patrick Maeve Simon Beth",
    nouns="""apple bottle window paper mountain river family baby vase button shoe fish hammer map thumb island
        kitchen garden bicycle photograph lamp butter village mouse forest cup pebble wave teacher zebra judge violin
        orange breath song cheese bridge bath voice mirror puppy farm yellow umbrella machine cabbage""",
    verbs="""buys finds breaks moves loves makes paints carries forgets leaves believes washes keeps teaches views
        measures remembers drops feeds sings brings wraps fixes watches throws uses visits chooses""",
    qualities="""big small warm famous blue brown beautiful empty open heavy foggy proper lovely useful purple smooth
        thin young foreign simple human brave wooden fresh evil awful pale""",
    places="""Boston Paris Birmingham Memphis Oxford Vienna Mumbai Bath Fairfield Plymouth Zurich Wembley Java""",
    frames="""{name} {verb} a {quality} {noun} in {place}. | The {quality} {noun} is above the {noun}. |
        My {noun} cost {number} pounds, and the {noun} was {quality}. | Could you show me the {noun} from {place}? |
        We have {number} {quality} {noun}s. | Please put the {noun} by the {noun}, {name}. |
        On the {ordinal} of May, {name} {verb} the {noun}. | Why is the {noun} so {quality}? |
        {name} and {name} move from {place} to {place}. | Oh, what a {quality} {noun}! |
        The number is {digits}. | Maybe {name} {verb} my {noun}; I do not believe it. | Yes. | No, thank you.""",
)
GERMAN = _lexicon(
    names="Peter Maria Bernd Ulrike Viktor Sophie Thomas Jürgen Wilma Emil Paula Fabian Mia Philipp",
    nouns="""Apfel Brot Fenster Papier Berg Fluss Familie Baum Vase Knopf Schuh Fisch Hammer Karte Daumen Insel Küche
        Garten Fahrrad Lampe Butter Dorf Maus Wald Tasse Welle Lehrer Brücke Stimme Spiegel Hof Schirm Kohl Bühne""",
    verbs="""kauft findet baut bewegt liebt macht malt bringt vergisst verlässt glaubt wäscht behält misst wirft
        besucht wählt öffnet""",
    qualities="""groß klein warm berühmt blau braun schön leer offen schwer neblig lieb nützlich dünn jung fremd
        einfach tapfer frisch böse müde""",
    places="Berlin Hamburg Wien München Bamberg Basel Köln Fulda Potsdam Zürich Bonn",
    frames="""{name} {verb} einen {quality}en {noun} in {place}. | Der {noun} ist über dem {noun}. |
        Das kostet {number} Euro. | Können Sie mir bitte den {noun} aus {place} zeigen? | Wir haben {number} {noun}. |
        Warum ist der {noun} so {quality}? | {name} und {name} fahren von {place} nach {place}. |
        Heute {verb} {name} meinen {quality}en {noun}. | Vielen Dank, {name}. | Ja, bitte.""",
)
FRENCH = _lexicon(
    names="Pierre Marie Baptiste Sophie Victor Amélie Thomas Julien Paul Emma Fabrice Mathilde Hugo",
    nouns="""pomme pain fenêtre papier montagne fleuve famille bébé vase bouton poisson marteau carte île cuisine
        jardin vélo lampe beurre village forêt tasse vague pont voix miroir ferme parapluie chou rue bain meuble""",
    verbs="""achète trouve casse bouge aime fabrique peint porte oublie quitte lave garde mesure jette chante utilise
        visite choisit ouvre""",
    qualities="""grand petit beau vide lourd fameux bleu brun ouvert utile mince jeune simple brave frais mauvais
        propre humain""",
    places="Paris Lyon Marseille Bordeaux Vienne Bruxelles Fribourg Amiens Pau Berne",
    frames="""{name} {verb} un {noun} {quality} à {place}. | Le {noun} est au-dessus du {noun}. |
        Ça coûte {number} euros. | Pouvez-vous me montrer le {noun} de {place} ? | Nous avons {number} {noun}s. |
        Pourquoi le {noun} est-il si {quality} ? | {name} et {name} vont de {place} à {place}. |
        Aujourd'hui, {name} {verb} mon {noun}. | Merci beaucoup, {name}. | Oui, bien sûr.""",
)
SPANISH = _lexicon(
    names="Pedro María Benito Sofía Víctor Amparo Tomás Julia Pablo Ema Fabián Mateo Juana",
    nouns="""manzana pan ventana papel montaña río familia bebé vaso botón zapato pez martillo mapa isla cocina jardín
        lámpara mantequilla pueblo bosque taza ola puente voz espejo granja paraguas calle baño mueble pomelo""",
    verbs="""compra encuentra rompe mueve ama hace pinta lleva olvida deja lava guarda mide tira canta usa visita
        escoge abre""",
    qualities="""grande pequeño bonito vacío pesado famoso azul pardo abierto útil joven simple bravo fresco malo
        limpio humano""",
    places="Madrid Bilbao Valencia Pamplona Viena Bogotá Palma Jaén Buenos Lima",
    frames="""{name} {verb} un {noun} {quality} en {place}. | El {noun} está encima del {noun}. |
        Cuesta {number} euros. | ¿Puede mostrarme el {noun} de {place}? | Tenemos {number} {noun}s. |
        ¿Por qué el {noun} es tan {quality}? | {name} y {name} van de {place} a {place}. |
        Hoy {name} {verb} mi {noun}. | Muchas gracias, {name}. | Sí, por favor.""",
)
ITALIAN = _lexicon(
    names="Pietro Maria Bruno Sofia Vittorio Ambra Tommaso Giulia Paolo Emma Fabio Matteo Giuseppe",
    nouns="""mela pane finestra foglio montagna fiume famiglia bambino vaso bottone scarpa pesce martello mappa isola
        cucina giardino lampada burro paese bosco tazza onda ponte voce specchio ombrello strada bagno mobile""",
    verbs="""compra trova rompe muove ama fa dipinge porta dimentica lascia lava tiene misura butta canta usa visita
        sceglie apre""",
    qualities="""grande piccolo bello vuoto pesante famoso blu bruno aperto utile giovane semplice bravo fresco cattivo
        pulito umano""",
    places="Roma Milano Bologna Venezia Palermo Vienna Bari Pisa Udine",
    frames="""{name} {verb} un {noun} {quality} a {place}. | Il {noun} è sopra il {noun}. | Costa {number} euro. |
        Mi può mostrare il {noun} di {place}? | Abbiamo {number} {noun}. | Perché il {noun} è così {quality}? |
        {name} e {name} vanno da {place} a {place}. | Oggi {name} {verb} il mio {noun}. | Grazie mille, {name}. |
        Sì, prego.""",
)
LEXICONS = {"en": ENGLISH, "de": GERMAN, "fr": FRENCH, "es": SPANISH, "it": ITALIAN}
