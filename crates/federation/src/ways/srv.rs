//! The order in which SRV targets are tried.
//!
//! Specification: RFC 2782, "Usage rules".

use homeserver_outbound::SrvTarget;

/// Lower priorities first; among equal ones the greater weight is drawn the likelier. `draw` gives
/// a number below its argument. Targets that say that the service is not offered are left out.
pub(super) fn order(
    mut targets: Vec<SrvTarget>,
    draw: &mut dyn FnMut(u64) -> u64,
) -> Vec<(String, u16)> {
    targets.retain(|target| target.target != ".");
    // Weight 0 comes first within its priority, so that it is drawn once in a while.
    targets.sort_by_key(|target| (target.priority, target.weight));
    let mut ordered = Vec::with_capacity(targets.len());
    while let Some(first) = targets.first() {
        let priority = first.priority;
        let equals = targets.iter().take_while(|next| next.priority == priority);
        let weights: Vec<u64> = equals.map(|target| target.weight.into()).collect();
        let drawn = draw(weights.iter().sum::<u64>() + 1);
        let mut sum = 0;
        let chosen = weights.iter().position(|weight| {
            sum += weight;
            sum >= drawn
        });
        let chosen = targets.remove(chosen.unwrap_or(0));
        ordered.push((chosen.target, chosen.port));
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(priority: u16, weight: u16, target: &str) -> SrvTarget {
        SrvTarget {
            priority,
            weight,
            target: target.to_owned(),
            port: priority + weight,
        }
    }

    fn check(targets: &[SrvTarget], draws: &[u64], bounds: &[u64], wanted: &[&str]) {
        let mut draws = draws.iter();
        let mut asked = Vec::new();
        let ordered = order(targets.to_vec(), &mut |below| {
            asked.push(below);
            *draws.next().unwrap()
        });
        let names: Vec<_> = ordered.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!((names.as_slice(), asked.as_slice()), (wanted, bounds));
    }

    #[test]
    fn lower_priorities_come_first_and_weights_are_shares() {
        let targets = [
            target(2, 0, "late"),
            target(1, 30, "big"),
            target(1, 10, "small"),
            target(1, 0, "none"),
        ];
        let [late, big, small, none] = ["late", "big", "small", "none"];
        check(
            &targets,
            &[0, 0, 0, 0],
            &[41, 41, 31, 1],
            &[none, small, big, late],
        );
        check(
            &targets,
            &[40, 10, 0, 0],
            &[41, 11, 1, 1],
            &[big, small, none, late],
        );
        check(
            &targets,
            &[10, 1, 0, 0],
            &[41, 31, 1, 1],
            &[small, big, none, late],
        );
        check(
            &targets,
            &[11, 0, 10, 0],
            &[41, 11, 11, 1],
            &[big, none, small, late],
        );
    }

    #[test]
    fn what_is_not_offered_is_not_tried() {
        check(&[target(0, 0, ".")], &[], &[], &[]);
        check(&[target(0, 0, "."), target(1, 0, "a")], &[0], &[1], &["a"]);
        check(&[], &[], &[], &[]);
    }
}
