"""Define the texts of the `stories` grammar, as data only. `minigpt.data.stories.generator` explains and runs it.

RULES maps a rule to its alternatives, `{text: weight}`. In a text, `{when}` is replaced by a new alternative of rule
`when`, and `{hero.name}` by a form of a role that the story chose once. Each alternative of `story` is a plot. ROLES
maps a role to a table of who or what may play it, one per row: a weight, then one column per form. Rows end at a line
end or a semicolon. A capitalised form (`{hero.He}`) needs no column. UNLIKE lists pairs of roles that must be played
by different ones.

If you add texts, keep three rules (tests check each): nearly every story has 250 to 450 characters on one line; no text
can be derived in two ways, so no two alternatives of a rule may give the same text; a plot mentions every role of its
cast. Questions, times and counts are here so that a character model knows `?`, `:` and digits, which chats need.
"""

NAMES = """
weight | name  | he  | him | his
     6 | Pip   | he  | him | his
     6 | Lily  | she | her | her
     5 | Max   | he  | him | his
     5 | Rosie | she | her | her
     5 | Finn  | he  | him | his
     5 | Clara | she | her | her
     4 | Toby  | he  | him | his
     4 | Daisy | she | her | her
     4 | Sam   | he  | him | his
     4 | Nina  | she | her | her
     4 | Ben   | he  | him | his
     4 | Ella  | she | her | her
     3 | Otto  | he  | him | his
     3 | Ida   | she | her | her
     3 | Hugo  | he  | him | his
     3 | Wren  | she | her | her
     3 | Gus   | he  | him | his
     3 | Kit   | she | her | her
     2 | Jack  | he  | him | his
     2 | Zoe   | she | her | her
     2 | Yuri  | he  | him | his
     2 | Abby  | she | her | her
     2 | Quin  | he  | him | his
     2 | Vera  | she | her | her
"""

ANIMALS = """
weight | noun     | coming
     6 | fox      | trotting
     6 | rabbit   | hopping
     5 | bear     | plodding
     5 | mouse    | scurrying
     4 | puppy    | bounding
     4 | hedgehog | shuffling
     3 | badger   | strolling
     3 | lamb     | skipping
     3 | otter    | dancing
     3 | mole     | creeping
     2 | piglet   | prancing
     2 | fawn     | leaping
"""

ROLES = {
    "hero": NAMES,
    "pal": NAMES,
    "kind": ANIMALS,
    "palkind": ANIMALS,
    "home": """
weight | noun       | at
     5 | the river  | by the river
     4 | the mill   | near the mill
     4 | the hill   | on the hill
     4 | the oak    | under the oak
     3 | the lake   | by the lake
     3 | the wood   | in the wood
     3 | the sea    | by the sea
     3 | the bridge | near the bridge
     2 | the farm   | behind the farm
     2 | the valley | in the valley
     2 | the pond   | by the pond
     2 | the castle | near the castle
""",
    "treat": """
weight | noun; 5 | honey; 5 | plums; 4 | nuts; 4 | berries; 3 | apples; 3 | jam; 3 | cheese; 3 | figs
2 | toast; 2 | muffins; 2 | raisins; 2 | waffles; 1 | dates; 1 | onions
""",
    "look": """
weight | word; 6 | red; 5 | blue; 4 | green; 4 | yellow; 3 | pink; 3 | striped; 3 | old; 2 | white
2 | tiny; 2 | new; 2 | violet; 2 | lucky
""",
    "toy": "weight | noun; 5 | kite; 4 | ball; 4 | hat; 3 | scarf; 2 | umbrella; 2 | flag",
    "spot": """
weight | into            | it             | bad
     5 | into a tree     | the branch was | high
     4 | into a bush     | the twigs were | sharp
     3 | over a wall     | the wall was   | steep
     3 | into a ditch    | the ditch was  | deep
     3 | onto a roof     | the roof was   | far up
     2 | across a stream | the water was  | fast
""",
    "craft": """
weight | make            | noun    | oops
     5 | bake a cake     | cake    | it came out flat
     4 | build a boat    | boat    | it sank at once
     3 | knit a scarf    | scarf   | the wool got tangled
     3 | paint a picture | picture | the paint ran
     3 | sew a quilt     | quilt   | the thread kept breaking
     2 | carve a flute   | flute   | it would not play
""",
    "kin": """
weight | noun; 5 | mother; 5 | granny; 4 | father; 3 | sister; 3 | brother; 2 | grandpa; 2 | teacher; 2 | aunt
2 | uncle; 1 | cousin
""",
    "crop": "weight | noun; 5 | pumpkin; 4 | turnip; 3 | melon; 3 | cabbage; 2 | radish; 2 | beet",
    "gadget": """
weight | noun   | broke         | works
     5 | cart   | lost a wheel  | rolled
     4 | drum   | got a hole    | boomed
     3 | watch  | stopped       | ticked
     3 | fiddle | lost a string | sang
     3 | sled   | split in two  | slid
     2 | lamp   | went dark     | glowed
     2 | bell   | cracked       | rang
""",
    "light": "weight | noun; 5 | lantern; 4 | candle; 3 | torch",
}

UNLIKE = {"pal": "hero", "palkind": "kind"}

# fmt: off
RULES: dict[str, dict[str, float]] = {
    "story": {
        "{at_home} {loses} {fails_to_reach} {mood} {meets} {reaches} {plays}\n": 3,
        "{fond} {loses} {fails_to_reach} {mood} {meets} {reaches} {feasts}\n": 3,
        "{at_home} {wishes} {spoils} {mood} {meets} {succeeds} {plays}\n": 2,
        "{fond} {wishes} {spoils} {mood} {meets} {succeeds} {feasts}\n": 3,
        "{at_home} {finds} {fails_to_pull} {mood} {meets} {pulls} {plays}\n": 2,
        "{fond} {finds} {fails_to_pull} {mood} {meets} {pulls} {cooks}\n": 2,
        "{at_home} {breaks} {fails_to_mend} {mood} {meets} {mends} {plays}\n": 3,
        "{fond} {breaks} {fails_to_mend} {mood} {meets} {mends} {feasts}\n": 2,
        "{at_home} {strays} {fails_to_return} {mood} {meets} {returns} {plays}\n": 4,
    },
    # Who
    "at_home": {
        "{once} {a_trait} {kind.noun} {named} {hero.name} who {dwelt} {home.at}.": 6,
        "{hero.name} was {a_trait} {kind.noun} who {dwelt} {home.at}.": 3,
        "{home.At} {lived} {a_trait} {kind.noun} {named} {hero.name}.": 3,
    },
    "fond": {
        "{once} {a_trait} {kind.noun} {named} {hero.name} who {loved} {treat.noun}.": 6,
        "{hero.name} was {a_trait} {kind.noun} who {loved} {treat.noun}.": 3,
        "{hero.name} the {kind.noun} {loved} {treat.noun} {most}.": 2,
    },
    "once": {
        "Once upon a time there was": 6, "Once there was": 4, "There once was": 3, "Long ago there was": 3,
        "Far away there was": 2, "Here is a tale of": 1,
    },
    "a_trait": {"a {size}": 4, "a {trait}": 5, "a {trait} {little}": 4, "an {eager}": 1, "an {eager} {little}": 1},
    "size": {"little": 4, "young": 3, "tiny": 2, "small": 2},
    "little": {"little": 5, "young": 3},
    "trait": {
        "brave": 4, "shy": 4, "kind": 4, "clever": 3, "merry": 3, "gentle": 3, "quiet": 2, "curious": 2, "playful": 2,
        "sleepy": 2, "jolly": 1, "cheerful": 1,
    },
    "eager": {"eager": 3, "honest": 2, "unlucky": 1, "untidy": 1},
    "named": {"named": 5, "called": 4},
    "dwelt": {"lived": 6, "had a home": 2, "had a den": 1, "was born": 1},
    "lived": {"lived": 4, "there lived": 3, "there was": 2, "you could find": 1},
    "loved": {"loved": 5, "liked": 2, "adored": 2, "dreamed of": 1, "always wanted": 1},
    "most": {"best of all": 4, "most of all": 3, "more than anything": 2, "very much": 2},
    "he": {"{hero.he}": 4, "{hero.name}": 3},
    "He": {"{hero.He}": 4, "{hero.name}": 3},
    # When
    "when": {"One {weather} {hours},": 5, "On a {weather} {hours}": 2, "{early},": 2},
    "weather": {
        "sunny": 4, "windy": 4, "bright": 3, "cold": 3, "warm": 3, "rainy": 3, "misty": 2, "cloudy": 2, "grey": 2,
        "frosty": 1, "breezy": 1, "chilly": 1,
    },
    "hours": {"morning": 5, "day": 4, "afternoon": 3, "evening": 2},
    "early": {
        "One day": 4, "One fine day": 2, "Early one morning": 2, "Late one evening": 1, "One spring morning": 1,
        "One summer day": 1, "One autumn day": 1, "One winter morning": 1,
    },
    # Plot: a toy is blown away
    "loses": {"{when} {gust} {hero.his} {look.word} {toy.noun} {spot.into}.": 1},
    "gust": {
        "the wind blew": 5, "a gust swept": 3, "a breeze carried": 2, "a storm tossed": 2, "a crow dropped": 2,
        "a magpie dropped": 1, "a gale threw": 1,
    },
    "fails_to_reach": {"{He} {reached} {effort}, but {spot.it} {too} {spot.bad}.": 1},
    "reached": {
        "tried": 4, "reached out": 3, "hopped about": 2, "stretched": 2, "jumped": 2, "climbed": 2, "used a stick": 1,
        "threw pebbles": 1,
    },
    "effort": {
        "again and again": 4, "for a long time": 3, "with all {hero.his} might": 3, "as best {hero.he} could": 2,
        "over and over": 2, "for an hour": 2, "three times": 2, "many times": 1, "once more": 1, "all alone": 2,
        "without a rest": 1, "very hard": 2, "in vain": 1,
    },
    "too": {"too": 5, "much too": 3, "far too": 2, "just too": 2, "a bit too": 1, "still too": 1},
    "reaches": {
        "Together they {fetched} {a_pole} and {freed} the {look.word} {toy.noun}.": 4,
        "With {a_pole}, {they} {freed} the {look.word} {toy.noun}.": 3,
        "{pal.name} {fetched} {a_pole}, and {soon} the {look.word} {toy.noun} was {safe}.": 4,
    },
    "fetched": {"fetched": 4, "found": 4, "borrowed": 2, "brought": 2, "carried over": 1},
    "a_pole": {"a {long} {pole}": 4, "a {pole}": 1},
    "long": {"long": 4, "strong": 3, "good": 2, "sturdy": 2, "spare": 1, "big": 2, "dusty": 1, "crooked": 1},
    "pole": {"pole": 3, "rope": 3, "ladder": 3, "branch": 2, "plank": 2, "rake": 1, "broom": 1, "hook": 1},
    "freed": {"freed": 3, "saved": 3, "got back": 2, "won back": 1, "rescued": 2},
    "soon": {"soon": 5, "in no time": 2, "at last": 3, "before long": 2, "a moment later": 1},
    "safe": {"safe": 4, "free": 3, "back": 2, "fine": 1, "in {hero.his} arms": 1},
    # Plot: a present to make
    "wishes": {"{when} {he} {wanted} to {craft.make} for {hero.his} {dear}{kin.noun}.": 1},
    "wanted": {"wanted": 5, "wished": 2, "hoped": 2, "decided": 2, "planned": 2, "set out": 1, "began": 1},
    "dear": {"": 4, "dear ": 3, "kind ": 2, "old ": 1, "busy ": 1, "sick ": 1},
    "spoils": {"{He} {worked} {effort}, but {craft.oops}.": 1},
    "worked": {"tried": 4, "worked": 4, "did it": 2, "hurried": 1, "toiled": 1, "puffed": 1, "struggled": 1},
    "succeeds": {
        "Together they {retried}, and {hero.his} {kin.noun} {praised} the {craft.noun}.": 4,
        "{pal.name} {showed} {hero.him} how, and {soon} the {craft.noun} was {perfect}.": 4,
        "{hero.name} and {pal.name} {retried}, and {soon} the {craft.noun} was {perfect}.": 3,
    },
    "retried": {
        "tried again": 4, "started over": 3, "worked slowly": 2, "took their time": 2, "began again": 2,
        "did it with care": 1,
    },
    "praised": {"loved": 5, "adored": 2, "praised": 2, "kissed": 1, "cheered for": 1, "smiled at": 1},
    "showed": {"showed": 5, "taught": 3, "told": 2},
    "perfect": {
        "perfect": 4, "lovely": 3, "done": 2, "ready": 2, "splendid": 2, "the best of all": 1, "just right": 2,
        "a joy to see": 1,
    },
    # Plot: a find too heavy for one
    "finds": {"{when} {he} {found} {a_huge} {crop.noun} {where}.": 1},
    "found": {"found": 5, "saw": 3, "spotted": 2, "came across": 1, "tripped over": 1, "noticed": 1},
    "a_huge": {"a huge": 4, "a giant": 3, "a very big": 2, "an enormous": 2, "a great fat": 1, "a mighty": 1},
    "where": {
        "in the garden": 4, "in a field": 3, "behind the shed": 2, "by the path": 2, "near the gate": 2,
        "in the weeds": 1, "beside a fence": 1,
    },
    "fails_to_pull": {"{He} {pulled} {effort}, but it {would_not_move}.": 1},
    "pulled": {"pulled": 4, "pushed": 4, "tugged": 3, "heaved": 2, "shoved": 2, "dug": 1},
    "would_not_move": {
        "would not move": 4, "did not budge": 3, "stayed where it was": 2, "was too heavy": 3,
        "sat there like a rock": 1,
    },
    "pulls": {
        "Together they {fetched} {a_pole} and {rolled} the {crop.noun} home.": 3,
        "{pal.name} {gripped} {hero.him}, both {pulled_hard}, and out {popped} the {crop.noun}.": 4,
        "{hero.name} and {pal.name} {pulled_hard}, and {soon} out {popped} the {crop.noun}.": 3,
    },
    "rolled": {"rolled": 4, "dragged": 3, "carried": 3, "pulled": 2, "brought": 1},
    "gripped": {"held": 4, "gripped": 2, "stood behind": 2, "grabbed": 2, "clung to": 1},
    "pulled_hard": {"pulled": 4, "tugged": 3, "heaved": 2, "pulled hard": 3, "counted to three": 2, "leaned back": 1},
    "popped": {"popped": 4, "came": 3, "rolled": 2, "jumped": 2, "shot": 1, "slid": 1},
    # Plot: something breaks
    "breaks": {"{when} {hero.his} {look.word} {gadget.noun} {gadget.broke}.": 1},
    "fails_to_mend": {"{He} {mended} {effort}, but {it_stayed_broken}.": 1},
    "mended": {
        "tried": 4, "tried to mend it": 3, "fussed over it": 2, "worked": 2, "hammered": 2, "tried to fix it": 2,
    },
    "it_stayed_broken": {
        "it was no use": 4, "nothing helped": 3, "it got worse": 2, "that did not help": 2, "it was too hard": 2,
        "it stayed broken": 1,
    },
    "mends": {
        "Together they {fetched} {a_fixer}, and {soon} the {gadget.noun} {gadget.works} {as_new}.": 4,
        "{pal.name} {fetched} {a_fixer}, and the {look.word} {gadget.noun} {gadget.works} {as_new}.": 4,
        "With {a_fixer} from {pal.name}, the {look.word} {gadget.noun} {gadget.works} {as_new}.": 2,
    },
    "a_fixer": {
        "some string": 3, "a pot of glue": 3, "a few nails": 3, "a long ribbon": 2, "some wire": 2, "a wooden peg": 2,
        "a bit of tape": 2, "a new screw": 1,
    },
    "as_new": {"once more": 3, "like new": 3, "as before": 2, "as if by magic": 1, "at once": 2, "again": 3},
    # Plot: the way home is lost
    "strays": {
        "{when} {he} {chased} {a_bee} and got lost.": 4,
        "{when} {he} {walked} too far from {home.noun}.": 3,
    },
    "chased": {"chased": 4, "followed": 4, "ran after": 3, "hurried after": 1},
    "a_bee": {
        "a bee": 3, "a butterfly": 4, "a leaf": 2, "a rainbow": 2, "a cloud": 2, "a dragonfly": 1, "a snail": 1,
        "a moth": 1,
    },
    "walked": {"walked": 4, "wandered": 4, "went": 3, "ran": 3, "strayed": 2, "skipped": 1},
    "fails_to_return": {"{He} {searched} {effort}, but {no_way}.": 1},
    "searched": {"looked": 4, "searched": 4, "turned back": 2, "called out": 2, "ran about": 1, "tried": 2},
    "no_way": {
        "every path looked the same": 3, "it was getting dark": 3, "the path was gone": 2, "nobody was there": 2,
        "all was dark and still": 1, "the fog was too thick": 1,
    },
    "returns": {
        "{pal.name} {lit} a {bright} {light.noun}, and the {light.noun} {led} them {safely} to {home.noun}.": 3,
        "With a {bright} {light.noun} {held_high}, {pal.name} {took} {hero.him} {safely} to {home.noun}.": 3,
        "{pal.name} {took} {hero.him} {safely} to {home.noun}, and {pal.his} {light.noun} {glowed}.": 2,
    },
    "lit": {"lit": 4, "held up": 3, "had": 2, "fetched": 2, "raised": 1},
    "bright": {"bright": 4, "little": 3, "brass": 2, "warm": 2, "paper": 1, "red": 1, "big": 1},
    "led": {"led": 4, "guided": 3, "brought": 2},
    "held_high": {"held high": 3, "in hand": 2, "to guide them": 2, "burning bright": 1},
    "took": {"took": 4, "led": 4, "brought": 2, "walked": 2},
    "safely": {"safely": 3, "home": 2, "straight": 2, "back": 3, "gently": 1, "slowly": 1},
    "glowed": {"shone brightly": 2, "glowed in the dark": 2, "never went out": 2, "burned bright": 1},
    # Feelings
    "mood": {
        '"{oh}!" {cried} {hero.name}{sadly}.': 5, '"{oh}," {he} {sighed}{sadly}.': 3,
        "{hero.name} felt {sad}{and_low}.": 4, "{He} {sat} and {wept}{sadly}.": 2,
        '"{ask}?" {asked} {hero.name}{sadly}.': 3,
    },
    "oh": {
        "Oh no": 5, "Oh dear": 4, "Dear me": 2, "Poor me": 2, "What a pity": 2, "I give up": 2,
        "It is no good": 1, "Bad luck": 1, "I need help": 2,
    },
    "ask": {"What now": 3, "What can I do": 4, "Who can help me": 3, "Can no one help": 2, "Must I give up": 1},
    "asked": {"asked": 5, "wondered": 2, "cried": 2, "sighed": 2},
    "cried": {"cried": 5, "sobbed": 2, "wailed": 2, "said": 3, "moaned": 1, "groaned": 1, "called": 1},
    "sighed": {"sighed": 5, "said": 3, "whispered": 3, "sniffed": 2, "murmured": 1, "mumbled": 1},
    "sadly": {
        "": 8, " sadly": 3, " softly": 2, " at last": 2, " quietly": 2, " glumly": 1, " a little": 1, " all alone": 1,
    },
    "sad": {
        "sad": 5, "very sad": 3, "so sad": 2, "tired": 3, "cross": 2, "upset": 2, "small": 1, "gloomy": 1, "blue": 1,
    },
    "and_low": {
        "": 4, " and lonely": 3, " and alone": 2, " and wanted to cry": 2, " and sat down": 2, " and hungry": 1,
        " and cold": 1, " and afraid": 1, " and gave up": 1,
    },
    "sat": {"sat down": 4, "lay down": 2, "stood there": 2, "stopped": 1, "hid": 1, "turned away": 1},
    "wept": {"cried": 4, "wept": 3, "sighed": 3, "sobbed": 2, "sniffed": 1, "sulked": 1},
    # The friend
    "meets": {
        '"{offer}," said {a_trait} {palkind.noun} {named} {pal.name}{kindly}.': 4,
        '"{offer}!" {called_out} {pal.name} {the_trait} {palkind.noun}{kindly}.': 4,
        '{along} came {pal.name} {the_trait} {palkind.noun}. "{offer}," {said_pal}{kindly}.': 4,
        "{luckily} {a_trait} {palkind.noun} {named} {pal.name} {heard} {hero.him} and came {palkind.coming} {over}.": 3,
    },
    "said_pal": {"{pal.he} said": 3, "said {pal.name}": 3, "{pal.name} said": 1},
    "the_trait": {"the": 3, "the {trait}": 5, "the {size}": 2},
    "luckily": {"Luckily": 3, "Soon": 3, "Then": 3, "Just then": 3, "By chance": 1, "At once": 1},
    "offer": {
        "I can help": 4, "Let me help": 4, "Do not cry": 4, "Cheer up": 3, "Never mind": 2, "Do not worry": 3,
        "I have an idea": 3, "We can do it": 2, "Come with me": 2, "Two can do more": 1, "Wipe your eyes": 1,
        "I know what to do": 2, "I have a plan: we do it together": 2,
    },
    "called_out": {"said": 4, "called": 4, "cried": 2, "laughed": 2, "shouted": 2, "sang": 1},
    "kindly": {
        "": 7, " kindly": 3, " gently": 2, " warmly": 2, " with a smile": 2, " bravely": 1, " brightly": 1,
        " at once": 1, " with a wink": 1, " and smiled": 2, " and bowed": 1,
    },
    "along": {"Along": 4, "Just then along": 2, "By": 2, "Then": 3, "Down the path": 2, "Over the grass": 1},
    "heard": {"heard": 4, "saw": 4, "noticed": 2, "met": 1, "found": 1},
    "over": {"over": 3, "to help": 3, "along": 2, "up": 2, "closer": 2},
    # The end
    "plays": {"{later} {they} {danced} {home.at}{until}.": 5, "{from_then}, {they} {met} {home.at}{often}.": 3},
    "feasts": {
        "{later} {they} {shared} {treat.noun}{until}.": 5,
        "{from_then}, {they} {shared} {treat.noun}{often}.": 3,
    },
    "cooks": {"{later} {they} {shared} {crop.noun} {soup} {and_treat}{until}.": 1},
    "soup": {"soup": 4, "pie": 3, "stew": 3, "cake": 1, "bread": 1},
    "and_treat": {"and {treat.noun}": 3, "with {treat.noun}": 2},
    "later": {
        "That night": 4, "Afterwards": 3, "Then": 3, "After that": 2, "Later": 2, "In the end": 2, "At last": 2,
        "To celebrate,": 1, "At {hour}:{minutes}": 3,
    },
    "hour": {"4": 1, "5": 2, "6": 3, "7": 3, "8": 2, "9": 1},
    "minutes": {"00": 3, "15": 2, "20": 1, "30": 3, "45": 2},
    "they": {
        "they": 5, "the two friends": 4, "the new friends": 2, "both of them": 2, "{hero.name} and {pal.name}": 4,
        "the happy pair": 1,
    },
    "danced": {"danced": 4, "played": 4, "sang": 3, "laughed": 2, "rested": 2, "sat": 2, "skipped": 1, "told tales": 1},
    "until": {
        "": 5, " until bedtime": 3, " by starlight": 2, " by moonlight": 2, " and were happy": 2, " with a song": 1,
        " until dawn": 1, " and laughed": 2, " side by side": 2,
    },
    "from_then": {"From that day on": 5, "From then on": 3, "Ever after": 2, "After that day": 1},
    "met": {"met": 4, "played": 4, "had tea": 2, "sang songs": 2, "were best friends": 2, "went for walks": 1},
    "shared": {"shared": 5, "ate": 4, "enjoyed": 2, "had": 2, "feasted on": 2, "tasted": 1},
    "few": {"2": 3, "3": 3, "4": 1, "5": 1, "6": 1},
    "often": {"": 3, " every day": 4, " every week": 2, " each evening": 2, " on Sundays": 1, " all year": 2,
              " {few} times a week": 2},
}
# fmt: on
