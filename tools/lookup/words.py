"""Words of the lookup model's vocabulary, by class. Each becomes one token, with its leading space."""

ADJECTIVES = """amber ancient bitter bold bright broken calm careful clever cold copper cosy crimson curious dark
deep distant dusty early eager empty faint famous fierce gentle giant golden grand green grey happy heavy hidden hollow
honest humble icy idle iron jolly keen kind late lazy light little lonely loud lucky mellow mighty misty modest narrow
noble odd old open orange pale patient plain polite proud purple quick quiet rapid rare red restless rich rough round
royal rusty salty secret sharp shy silent silver simple sleepy slow small smooth soft solemn steady steep stern still
stormy strange strong sudden sunny sweet tall tame tender thin tidy tiny tired velvet warm weary white wide wild wise
wooden yellow young""".split()

NOUNS = """acorn anchor apple arch arrow badger baker banner barge barn basin basket beacon bell bench bird blanket
boat bottle branch bridge brook broom bucket button cabin camel candle canyon captain carpet castle cat cave cellar
chair chapel chart chest child cliff clock cloud coach coast comet cook corner cottage crane crow cup curtain deer desk
desert doctor door dove dragon drum eagle engine falcon farmer feather fence ferry fiddle field fire flag flame flute
forest fountain fox friend garden gate ghost glacier goat goose grove guard guest hammer harbour hare harp hawk heron
hill horn horse hotel house hunter island jar judge kettle key king kitchen kite knight ladder lake lamp lantern lark
letter library lion lizard lock mantle maple market marsh mason meadow merchant mill miller mirror monk moon morning
mountain mouse needle nest night notebook oak oar ocean orchard otter owl painter palace path pearl pebble pigeon pilot
pine pirate plain planet plough poet pond porter postman prince puppet quarry queen quill rabbit raven reed ribbon
rider ring river road robin rocket roof rope rose sailor scholar school shadow sheep shepherd ship shoe shore singer
sister smith snow soldier song sparrow spider spring squirrel stable star station statue stone storm stranger stream
street student summer swan table tailor teacher temple thief thunder tiger tower trader train traveller tree trumpet
tunnel turtle valley village violin visitor wagon waiter wall watch water weaver well whale wheel widow willow wind
window winter wizard wolf workshop writer""".split()

VERBS = """admires answers avoids begs blesses borrows breaks builds buys calls carries carves catches chases cleans
climbs closes collects counts covers crosses describes discovers draws drops enters explains fears feeds fetches finds
follows forgets gathers gives greets guards guides hears helps hides holds hunts keeps knows leaves lifts likes loses
loves measures meets mends misses moves needs notices offers opens paints passes praises pulls pushes reaches reads
recalls remembers repairs saves searches sees sells sends shows sketches steals studies takes teaches thanks touches
trusts visits wakes wants warns washes watches wins wraps""".split()

ADVERBS = """again alone always badly early gladly hardly indeed kindly later maybe nearly never now often once
perhaps rarely sadly slowly softly soon still suddenly swiftly then today together tomorrow twice yesterday""".split()

PREPOSITIONS = """about above across after against along among around at before behind below beneath beside between
beyond by for from in inside into near of off on over past through to toward under until upon with within without""".split()

DETERMINERS = "a any each every his her its my no one our some that the their this your".split()

FUNCTION = """and are as be been but can code could did do does had has have he how if is it may more must not number
or question said says seven she so text than them there they three two was we were what when where which while who why
will would yes you""".split()

# Words that open a sentence: with and without a leading space.
OPENERS = "The A Every Some That This My Our One No Her His What Where Who When And But Then".split()
