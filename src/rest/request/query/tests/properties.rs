//! Any query reads as it was written, and any text is read or refused.

use proptest::prelude::*;

use super::*;
use crate::rest::request::{
    Embed, Field, Is, Item, Key as JsonKey, Operator, Order, Quantifier, Search, Step, Test,
};

fn names() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z]{1,4}",
        prop::sample::select(vec![
            "and", "or", "not", "order", "limit", "count", "inner", "select", "is"
        ])
        .prop_map(str::to_owned),
        "[a\"\\\\.,:()!>*\\- {}]{1,5}",
    ]
}

/// Values without a star, which is another character in a pattern.
fn values() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z0-9]{0,4}", "[a\"\\\\.,:() {}%]{0,6}"]
}

fn fields() -> impl Strategy<Value = Field> {
    let key = prop_oneof![names().prop_map(JsonKey::Name), any::<i32>().prop_map(JsonKey::Index)];
    let step = (any::<bool>(), key).prop_map(|(as_text, to)| Step { as_text, to });
    (names(), prop::collection::vec(step, 0..3)).prop_map(|(name, path)| Field { name, path })
}

fn items() -> impl Strategy<Value = Vec<Item>> {
    let cast = prop::option::of(prop::sample::select(vec!["int", "double precision"]));
    let field = (fields(), prop::option::of(names()), cast).prop_map(|(field, alias, cast)| {
        Item::Field { field, alias, cast: cast.map(str::to_owned) }
    });
    let leaf = prop_oneof![Just(Item::All), field];
    let item = leaf.prop_recursive(4, 12, 3, |item| {
        (
            (names(), prop::option::of(names()), prop::option::of(names())),
            (any::<bool>(), any::<bool>()),
            prop::collection::vec(item, 0..3),
        )
            .prop_map(|((target, alias, hint), (inner, spread), items)| {
                let alias = alias.filter(|_| !spread);
                Item::Embed(Embed { target, alias, hint, inner, spread, items })
            })
    });
    prop::collection::vec(item, 0..4)
}

fn tests() -> impl Strategy<Value = Test> {
    let operator = prop::sample::select(vec![
        Operator::Eq,
        Operator::Neq,
        Operator::Like,
        Operator::IMatch,
        Operator::Contains,
        Operator::Adjacent,
        Operator::IsDistinct,
    ]);
    let quantifier = prop::option::of(prop::sample::select(vec![Quantifier::Any, Quantifier::All]));
    let compare = (operator, quantifier, values()).prop_map(|(operator, quantifier, value)| {
        let can = matches!(operator, Operator::Eq | Operator::Like | Operator::IMatch);
        Test::Compare { operator, quantifier: quantifier.filter(|_| can), value }
    });
    let is = vec![Is::Null, Is::NotNull, Is::True, Is::False, Is::Unknown];
    let kind = vec![Search::Query, Search::Plain, Search::Phrase, Search::Web];
    let config = prop::option::of(Just("english".to_owned()));
    let search = (prop::sample::select(kind), config, values());
    prop_oneof![
        compare,
        prop::collection::vec(values(), 0..4).prop_map(Test::In),
        prop::sample::select(is).prop_map(Test::Is),
        search.prop_map(|(kind, config, value)| Test::Search { kind, config, value }),
    ]
}

fn conditions() -> impl Strategy<Value = Condition> {
    let negated = |(is_negated, condition)| {
        if is_negated { Condition::Not(Box::new(condition)) } else { condition }
    };
    let test = (fields(), tests()).prop_map(|(field, test)| Condition::Test { field, test });
    let leaf = (any::<bool>(), test).prop_map(negated);
    leaf.prop_recursive(4, 16, 3, move |condition| {
        let list = prop::collection::vec(condition, 1..4);
        let tree = (any::<bool>(), list).prop_map(|(is_or, list)| {
            if is_or { Condition::Or(list) } else { Condition::And(list) }
        });
        (any::<bool>(), tree).prop_map(negated)
    })
}

fn at<T: std::fmt::Debug>(what: impl Strategy<Value = T>) -> impl Strategy<Value = At<T>> {
    (prop::collection::vec(names(), 0..3), what).prop_map(|(path, what)| At { path, what })
}

fn queries() -> impl Strategy<Value = Query> {
    let order = (prop::option::of(names()), fields(), any::<bool>(), any::<Option<bool>>())
        .prop_map(|(relation, field, descending, nulls_first)| {
            // Steps follow the column inside, not the relation.
            Order { relation, field, descending, nulls_first }
        });
    let range = (0..9_u64, prop::option::of(0..9_u64))
        .prop_map(|(limit, offset)| Range { limit: Some(limit), offset });
    let columns = || {
        prop::option::of(prop::collection::btree_set(names(), 1..4))
            .prop_map(|set| set.map(|set| set.into_iter().collect::<Vec<_>>()))
    };
    (
        items(),
        prop::collection::vec(at(conditions()), 0..3),
        prop::collection::vec(at(prop::collection::vec(order, 1..3)), 0..2),
        prop::collection::vec(at(range), 0..2),
        (columns(), columns()),
    )
        .prop_map(|(select, filters, mut orders, mut ranges, (columns, on_conflict))| {
            let mut paths = Vec::new();
            let mut is_first = |path: &Vec<String>| {
                !paths.contains(path) && {
                    paths.push(path.clone());
                    true
                }
            };
            orders.retain(|order| is_first(&order.path));
            ranges.retain(|range| is_first(&range.path));
            Query { select, filters, orders, ranges, columns, on_conflict }
        })
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(query in queries()) {
        let pairs = written::pairs(&query);
        let read = Query::parse(pairs.iter().map(|(name, value)| (&**name, &**value)), |_| false);
        prop_assert_eq!(read, Ok(query), "{:?}", pairs);
    }

    /// Also through a URL.
    #[test]
    fn what_is_encoded_is_read_back(query in queries()) {
        let encode = |text: &str| percent_encoding::utf8_percent_encode(
            text, percent_encoding::NON_ALPHANUMERIC).to_string();
        let pairs = written::pairs(&query);
        let pairs: Vec<String> =
            pairs.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
        prop_assert_eq!(Query::from_text(&pairs.join("&")), Ok(query));
    }

    /// The entry of the fuzz target, on text that is nearly a query.
    #[test]
    fn no_query_string_panics(
        text in r#"(select=|or=|not.and=|order=|a\.|limit=|columns=|&|[a-c]|eq\.|in\.|is\.|not\.|like\(any\)\.|fts\(|->>|->|-1|0|::|:|,|\(|\)|!inner|!|\.\.\.|\*|"|\\|\{|\}|%00|%C3%A4|%|\+| |null|ä){0,40}"#,
    ) {
        if let Err(problem) = Query::from_text(&text) {
            prop_assert!(problem.status.is_client_error());
        }
    }

    #[test]
    fn no_text_panics(name in "\\PC{0,20}", value in "\\PC{0,80}") {
        let _ = one(&name, &value);
        for known in ["select", "order", "or", "columns", "a", "limit"] {
            let _ = one(known, &value);
        }
    }
}
