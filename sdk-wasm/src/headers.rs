// SPDX-License-Identifier: Apache-2.0
//! What values of headers mean (RFC 9110 §5.6, §8.3).

/// The members of a list, without empty ones. Commas inside quotes do not divide.
pub(crate) fn list(value: &str) -> Vec<String> {
    let (mut members, mut member) = (Vec::new(), String::new());
    let (mut is_quoted, mut is_escaped) = (false, false);
    for character in value.chars() {
        let divides = character == ',' && !is_quoted;
        if divides {
            push(&mut members, &member);
            member.clear();
        } else {
            member.push(character);
        }
        if character == '"' && !is_escaped {
            is_quoted = !is_quoted;
        }
        is_escaped = is_quoted && character == '\\' && !is_escaped;
    }
    push(&mut members, &member);
    members
}

fn push(members: &mut Vec<String>, member: &str) {
    let member = member.trim();
    if !member.is_empty() {
        members.push(member.to_owned());
    }
}

/// Whether a `Content-Type` names JSON: `application/json`, or a type that ends in `+json`.
pub(crate) fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || essence.ends_with("+json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_split_at_commas_outside_quotes() {
        assert_eq!(list(r#"a, "b,\"c" ,, d;q=1"#), ["a", r#""b,\"c""#, "d;q=1"]);
        assert!(list(" , ").is_empty());
    }

    #[test]
    fn json_is_known_by_its_type_in_any_spelling() {
        for json in ["application/json", "Application/JSON; charset=utf-8", "application/problem+json"] {
            assert!(is_json(json), "{json}");
        }
        assert!(!is_json("text/plain") && !is_json("application/jsonp"));
    }
}
