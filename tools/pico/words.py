"""Word lists for invented tools and conversations, split into words for training and words held out.

Owns the lists and the rule `held_out`. A held-out word never occurs in the name, the parameters or the
description of a tool in the training data (it does occur in ordinary text of the corpus).
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tools import bucket

VERBS = """
add adjust align allocate analyze approve archive arrange assign attach audit balance bake block book
brew browse build calibrate cancel capture carve check classify clean clear clone close collect compare
compile compress configure confirm connect convert copy count create crop deactivate decode delay delete
deliver deploy describe design detect disable dispatch display download draft draw drop edit eject
enable encode enroll enter estimate examine expand export extend extract fetch fill filter find fix flag
fold format forward freeze generate grade grant grow harvest heat hide hire hold import inspect install
invite issue join label launch lend list load lock log lower mail map mark match measure merge mix
modify monitor mount mount mute notify open order organize pack paint park pause pay pick pin plan plant
play plot polish post predict prepare press preview print probe process publish pull purchase push query
queue raise rank rate read rebuild recall record recover redeem reduce refresh refund register reject
release reload remove rename render renew rent repair replace report request reserve reset resize
resolve restart restore resume retire return review rotate route sample save scale scan schedule score
search seal select sell send serve shift ship show shuffle sign simulate skip sort split start stop
store stream submit summarize suspend swap switch tag test tidy toggle trace track trade train transfer
translate trim tune unlock update upgrade upload validate verify view visit warm wash watch water weigh
wrap write
""".split()

NOUNS = """
account address agenda airport alarm album alert animal apartment appointment archive article artist
asset audio backup badge bakery balance ballot banner basket battery beach bicycle bill blanket blog
boat boiler bond book booking bottle branch bridge budget bug building bus button cabin cable cake
calendar camera campaign candle car card cargo carpet cart castle catalog ceiling cell certificate chair
channel chapter charge chart chat cheese choir church cinema circuit clinic clock cloud club coat coffee
coin column comet comment company compass computer concert contact container contract cookie copy coupon
course courier court crate crop currency curtain customer dashboard database deadline deck delivery
deposit desk device diagram diet dinner discount dish doctor document dog domain donation door drawer
dress drill driver drone eclipse elevator email employee engine envelope episode error essay event exam
exhibit expense experiment fabric factory family farm fee fence ferry festival field file film firewall
firmware fish flag flight flood floor flower folder forecast forest form fountain frame freezer friend
fuel furnace gallery game garage garden gate gift glacier glass goal grade graph greenhouse grid group
guest guide guitar hammer harbor hat helmet herb highway hike hill holiday horse hospital hotel house
image income index infection insect insurance interview inventory invoice island item jacket jewel job
journal journey juice key keyboard kitchen kitten label laboratory ladder lamp landmark language laptop
lawn lawyer league lecture ledger lesson letter library license lift light lizard loan locker log logo
luggage lunch machine magazine mail manual map market mask match meal medal medicine meeting melody
member membership memo menu message metal meter microphone milk mine mirror mission mixer model module
mortgage motor mountain movie museum mushroom neighbor network newsletter night node note notebook
notice novel nurse oven order orchard outfit package page paint painting palace panel paper parade
parcel park parking parrot party passenger passport password patch patient payment pension permit phone
photo piano picture pipeline pizza plan planet plant platform playlist poem police policy poll pool
portrait post poster potion prescription price printer prize product profile program project promotion
property puzzle quest question queue quiz quote radar radio rain ranking receipt recipe record referee
refund region relay reminder rent repair report request reservation reservoir resort restaurant result
resume review reward ribbon ride river road robot rocket roof room rope route router rule salad salary
sample satellite scarf school score screen script sculpture season seat seed sensor server service
session setting shadow sheep shelf shelter ship shipment shirt shoe shop shower signal singer site
sketch slide snack socket sofa soil song soup spell spice sponsor stadium stage stamp station statue
stock storm story street student studio subscription suitcase survey sweater switch table tank task tax
taxi teacher team telescope template tenant tent theater thread ticket tide tile timer tire token toll
tool topic tour tournament tower town toy tractor trail train transaction translation treatment tree
trip trophy truck tunnel turbine umbrella unit update vaccine valley van vault vegetable vehicle vendor
venue village vineyard violin visa visitor voice voucher wallet warehouse watch water weapon weather
website wedding wheel whistle window wine winner wire wolf workout workshop yacht zone
""".split()

TEXT_PARAMETERS = """
address airline alias artist author bank brand breed campus category channel city class client code
color company contact country course crew currency customer date day department destination detail diet
director district employee field flavor format gender genre grade group host industry ingredient
instrument item keyword kind label language location manager material member message method model month
mood name nickname note operator origin owner parent partner pattern person phrase place planet platform
player project prefix provider purpose query reason recipient reference region role room school sector
sender service shape shop side skill source species speaker sport stage state station status street
student style subject suffix supplier symbol tag target task teacher team text theme ticker title topic
town unit user username variant vehicle vendor version village volunteer weekday word zone
""".split()

INTEGER_PARAMETERS = """
age amount attempts batch block bottles boxes capacity chapter copies count days depth edition episode
floor guests hours index interval items lane level limit lines margin minutes month nights number offset
pages pallets participants passengers people persons pieces port position priority quantity rank repeats
retries round rows seats seconds servings sessions size slots stars steps stock stories tables threads
tickets turns units visits weeks width winners year years
""".split()

NUMBER_PARAMETERS = """
altitude amount area balance budget charge cost density deposit diameter discount distance dose energy
fee force frequency height humidity income latitude length longitude mass moisture power premium
pressure price radius rate ratio salary score speed temperature thickness threshold tip tolerance value
velocity voltage volume wage weight
""".split()

SWITCH_PARAMETERS = """
active annual anonymous automatic binding bold cached colored compact confidential dark detailed
encrypted express extended final fragile frozen global hidden important inclusive insured international
live local loud manual mobile nightly official optional organic paid permanent premium printed private
public quiet recursive refundable remote reversed rounded secure shared silent sorted spicy static
strict temporary transparent urgent vegan verbose verified visible weekly wireless
""".split()

PLAIN_VALUES = """
amber apple autumn bamboo basil beacon birch bronze cactus canyon cedar cherry cinnamon citrus clover
cobalt copper coral cotton crimson crystal daisy dawn desert diamond dusk ebony ember emerald falcon
fern ginger golden granite harbor hazel honey indigo iris ivory ivy jade jasmine lavender lemon lilac
lotus lunar maple marble meadow mint misty moss mango navy nectar nova oak ocean olive onyx opal orange
orchid panda pearl pepper pine plum poppy prairie pumpkin quartz raven rose ruby rustic saffron sage
sapphire scarlet shadow silver sky solar spring spruce sterling stone summer sunset teal thunder tiger
topaz turquoise vanilla velvet violet walnut willow winter zebra
""".split()

PEOPLE = """
Alice Amir Anna Ben Bob Boris Carla Carol Chen Clara Daniel David Diego Dora Elena Emma Erik Eva Farah
Felix Fiona Frank Grace Hana Hassan Helen Henry Hugo Ines Ivan Jack James Jana Jonas Julia Karim Kate
Kevin Laura Leo Lina Lucas Maria Marta Max Mia Mila Nadia Nina Noah Nora Olga Omar Oscar Paul Peter
Petra Priya Rosa Ruth Sam Sara Simon Sofia Tara Tim Tina Tom Uma Vera Victor Viola Walter Wendy Yara
Yusuf Zoe
""".split()

CITIES = """
Accra Amsterdam Athens Atlanta Austin Bergen Berlin Boston Bremen Brussels Cairo Calgary Chicago Dakar
Dallas Delhi Denver Dublin Geneva Ghent Hamburg Hanoi Helsinki Istanbul Jakarta Kyoto Lagos Leeds Lima
Lisbon London Lyon Madrid Manila Melbourne Miami Milan Montreal Mumbai Munich Nairobi Naples Osaka Oslo
Ottawa Paris Perth Porto Prague Quito Rome Santiago Seattle Seoul Sydney Tampa Tokyo Toronto Tunis Turin
Utrecht Venice Vienna Warsaw Zurich
""".split()

ALIKE = (
    ("get", "fetch", "show", "find", "look up", "retrieve", "read"),
    ("create", "make", "add", "set up", "open", "register"),
    ("delete", "remove", "cancel", "clear", "drop"),
    ("update", "change", "edit", "modify", "adjust"),
    ("send", "post", "submit", "deliver", "forward"),
    ("start", "launch", "begin", "run"),
    ("check", "inspect", "verify", "test"),
)
"""Verbs that a question may use for one another: then the noun alone says which tool is meant."""

STOP = frozenset(
    "the this that with from have will which when then into only also been such other using used".split()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WordPool:
    """The words that tools may be invented from."""

    verbs: tuple[str, ...]
    nouns: tuple[str, ...]
    texts: tuple[str, ...]
    integers: tuple[str, ...]
    numbers: tuple[str, ...]
    switches: tuple[str, ...]
    others: tuple[str, ...]


def held_out(word: str) -> bool:
    """True for one word in six: kept for tools that are only ever evaluated."""
    return bucket("word " + word, 6) == 0


def harvest(corpus: Path, count: int = 6000) -> list[str]:
    """Frequent plain words of the corpus's documentation, which widen the hand-written lists."""
    found: Counter[str] = Counter()
    with corpus.open() as lines:
        for line in lines:
            document = json.loads(line)
            if document["kind"] == "doc":
                found.update(set(re.findall(r"\b[a-z]{4,10}\b", document["text"])))
    return sorted(word for word, _ in found.most_common(count + 300)[300:] if word not in STOP)


def invented_word(chance: random.Random) -> str:
    """A pronounceable word that means nothing."""
    syllables = [
        chance.choice("bdfgklmnprstvz") + chance.choice("aeiou") for _ in range(chance.choice((2, 2, 3)))
    ]
    return "".join(syllables) + chance.choice(("", "", "n", "r", "x", "l", "t"))


def pools(harvested: list[str]) -> tuple[WordPool, WordPool]:
    """(words for training, words held out)."""

    def pool(wanted: bool) -> WordPool:
        def pick(words: list[str]) -> tuple[str, ...]:
            return tuple(sorted({word for word in words if held_out(word) is wanted}))

        return WordPool(
            verbs=pick(VERBS),
            nouns=pick(NOUNS),
            texts=pick(TEXT_PARAMETERS),
            integers=pick(INTEGER_PARAMETERS),
            numbers=pick(NUMBER_PARAMETERS),
            switches=pick(SWITCH_PARAMETERS),
            others=pick(harvested),
        )

    return pool(False), pool(True)
