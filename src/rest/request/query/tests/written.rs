//! A query written as text, every name in quotes, every value in a tree too.

use crate::rest::request::{
    At, Condition, Field, Is, Item, Key, Operator, Order, Quantifier, Query, Search, Test,
};

fn name(name: &str) -> String {
    format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""))
}

fn field(field: &Field) -> String {
    let mut text = name(&field.name);
    for step in &field.path {
        text.push_str(if step.as_text { "->>" } else { "->" });
        text.push_str(&match &step.to {
            Key::Name(key) => name(key),
            Key::Index(index) => index.to_string(),
        });
    }
    text
}

pub(super) fn items(items: &[Item]) -> String {
    items.iter().map(item).collect::<Vec<_>>().join(",")
}

fn item(item: &Item) -> String {
    let alias = |alias: &Option<String>| match alias {
        Some(alias) => format!("{}:", name(alias)),
        None => String::new(),
    };
    match item {
        Item::All => "*".to_owned(),
        Item::Field { field: column, alias: called, cast } => {
            let cast = cast.as_ref().map_or(String::new(), |cast| format!("::{cast}"));
            format!("{}{}{cast}", alias(called), field(column))
        }
        Item::Embed(embed) => format!(
            "{}{}{}{}{}({})",
            if embed.spread { "..." } else { "" },
            alias(&embed.alias),
            name(&embed.target),
            embed.hint.as_ref().map_or(String::new(), |hint| format!("!{}", name(hint))),
            if embed.inner { "!inner" } else { "" },
            items(&embed.items),
        ),
    }
}

/// Name and value of the parameter.
pub(super) fn filter(filter: &At<Condition>) -> (String, String) {
    let path = path(&filter.path);
    let (not, condition) = negation(&filter.what);
    match condition {
        Condition::And(list) => (format!("{path}{not}and"), branches(list)),
        Condition::Or(list) => (format!("{path}{not}or"), branches(list)),
        Condition::Not(_) => panic!("twice negated"),
        Condition::Test { field: about, test } => {
            (format!("{path}{}", field(about)), format!("{not}{}", comparison(test, false)))
        }
    }
}

/// What is in front, and what it is in front of.
fn negation(condition: &Condition) -> (&'static str, &Condition) {
    if let Condition::Not(inner) = condition { ("not.", inner) } else { ("", condition) }
}

/// What leads to an embedding.
fn path(names: &[String]) -> String {
    names.iter().fold(String::new(), |path, part| path + &name(part) + ".")
}

fn branches(list: &[Condition]) -> String {
    format!("({})", list.iter().map(branch).collect::<Vec<_>>().join(","))
}

fn branch(condition: &Condition) -> String {
    let (not, condition) = negation(condition);
    match condition {
        Condition::And(list) => format!("{not}and{}", branches(list)),
        Condition::Or(list) => format!("{not}or{}", branches(list)),
        Condition::Not(_) => panic!("twice negated"),
        Condition::Test { field: about, test } => {
            format!("{}.{not}{}", field(about), comparison(test, true))
        }
    }
}

fn comparison(about: &Test, is_in_tree: bool) -> String {
    let value = |value: &str| if is_in_tree { name(value) } else { value.to_owned() };
    match about {
        Test::Compare { operator, quantifier, value: text } => {
            let operator = match operator {
                Operator::Eq => "eq",
                Operator::Neq => "neq",
                Operator::Gt => "gt",
                Operator::Gte => "gte",
                Operator::Lt => "lt",
                Operator::Lte => "lte",
                Operator::Like => "like",
                Operator::ILike => "ilike",
                Operator::Match => "match",
                Operator::IMatch => "imatch",
                Operator::IsDistinct => "isdistinct",
                Operator::Contains => "cs",
                Operator::ContainedIn => "cd",
                Operator::Overlaps => "ov",
                Operator::StrictlyLeft => "sl",
                Operator::StrictlyRight => "sr",
                Operator::NotRightOf => "nxr",
                Operator::NotLeftOf => "nxl",
                Operator::Adjacent => "adj",
            };
            let quantifier = match quantifier {
                None => "",
                Some(Quantifier::Any) => "(any)",
                Some(Quantifier::All) => "(all)",
            };
            format!("{operator}{quantifier}.{}", value(text))
        }
        Test::In(values) => {
            let values: Vec<String> = values.iter().map(|value| name(value)).collect();
            format!("in.({})", values.join(","))
        }
        Test::Is(is) => {
            let is = match is {
                Is::Null => "null",
                Is::NotNull => "not_null",
                Is::True => "true",
                Is::False => "false",
                Is::Unknown => "unknown",
            };
            format!("is.{is}")
        }
        Test::Search { kind, config, value: text } => {
            let kind = match kind {
                Search::Query => "fts",
                Search::Plain => "plfts",
                Search::Phrase => "phfts",
                Search::Web => "wfts",
            };
            let config = config.as_ref().map_or(String::new(), |config| format!("({config})"));
            format!("{kind}{config}.{}", value(text))
        }
    }
}

pub(super) fn orders(orders: &[Order]) -> String {
    let order = |order: &Order| {
        let field = field(&order.field);
        let by = match &order.relation {
            Some(relation) => format!("{}({field})", name(relation)),
            None => field,
        };
        let nulls = match order.nulls_first {
            Some(true) => ".nullsfirst",
            Some(false) => ".nullslast",
            None => "",
        };
        format!("{by}{}{nulls}", if order.descending { ".desc" } else { "" })
    };
    orders.iter().map(order).collect::<Vec<_>>().join(",")
}

/// All of it, as pairs.
pub(super) fn pairs(query: &Query) -> Vec<(String, String)> {
    let at = |names: &[String], last: &str| path(names) + last;
    let columns = |columns: &[String]| {
        columns.iter().map(|column| name(column)).collect::<Vec<_>>().join(",")
    };
    let mut pairs = vec![("select".to_owned(), items(&query.select))];
    pairs.extend(query.filters.iter().map(filter));
    for order in &query.orders {
        pairs.push((at(&order.path, "order"), orders(&order.what)));
    }
    for range in &query.ranges {
        let mut bound = |last: &str, rows: Option<u64>| {
            pairs.extend(rows.map(|rows| (at(&range.path, last), rows.to_string())));
        };
        bound("limit", range.what.limit);
        bound("offset", range.what.offset);
    }
    for (key, list) in [("columns", &query.columns), ("on_conflict", &query.on_conflict)] {
        pairs.extend(list.as_ref().map(|list| (key.to_owned(), columns(list))));
    }
    pairs
}
